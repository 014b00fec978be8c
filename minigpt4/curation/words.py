"""The English that the rules know: word stems, what follows from a word, numbers, colours, verbs. Short lists, by hand.

A word that no list has stands for itself alone: it is supported only where a person wrote the same word.
"""

from __future__ import annotations

import re
from functools import cache

from ..evaluation.objects import COCO_SYNONYMS, PARENTS, ancestors, read_vocabulary, things_vocabulary


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that claim nothing: of what is left, every word has to be supported.
STOP = _set(
    """
    a an the this that these those some any each every both either it its itself he she they them his her hers him
    their theirs themselves himself herself who whom whose which what where when while whilst as than then there
    here so and or but nor if because in on at by of to from with within into onto upon up down out off over under
    above below behind beside besides between among amid around about across through along against near toward
    towards during after before until for via per alongside outside inside is are was were be been being am has
    have had having do does did doing can could will would may might must shall should also too very just still
    again other others another one ones own such like only even quite rather really image images picture pictures
    photo photos photograph show shows showing shown showed see sees seen visible depict depicts depicted
    depicting feature features featuring featured appear appears appearing capture captures captured captured get
    gets getting
    """
)
_COUNTING = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
NUMBERS = {word: n for n, word in enumerate(_COUNTING, 2)} | {str(n): n for n in range(2, 13)}
ONE = _set("a an one another this that")
COLOURS = _set(
    """
    black white brown red blue green yellow orange pink purple gray grey tan gold golden silver beige maroon teal
    turquoise blond blonde brunette multicolored colorful dark
    """
)
SIZES = _set("big large small little tiny huge tall long short young old older elderly adult new")
ADJECTIVES = COLOURS | SIZES | _set("smiling happy wet asian male female shirtless topless different")
PREPOSITIONS = _set(
    """
    in on at by of to from with into onto over under above below behind beside between among around about across
    through along against near toward towards during after before for alongside outside inside off up down out
    like than without
    """
)
DETERMINERS = ONE | _set("the his her its their these those some several many no each")
# Of one body at one time only one of these is true.
POSTURES = _set("sit stand lie walk run")

# Words of a line mean the same, in both directions. The word lists of the evaluation have kinds of a thing in one line
# ("dog, poodle"): there the first word follows from the others, and nothing else does.
_SAME = """bicycle bike, motorcycle motorbike, couch sofa, child kid, woman lady, man guy, ocean sea, plane airplane,
rock boulder, beach shore seashore, forest wood, tv television, phone telephone cellphone, big large, little young,
small tiny, gray grey, blond blonde, gold golden, jump leap, climb scale, smile grin, look watch gaze stare, sit seat,
lie lay, baby infant, puppy pup, cat kitty, ship boat, trail path, road street, cap hat, coat jacket, trouser pant,
fence railing, sled sledge, bunny rabbit, leash lead, stair step, begin start, speak talk, pool swimming-pool,
couple pair, grass grassy, snow snowy, rock rocky, sand sandy, water watery, mud muddy, shop store"""

# Words whose stem no ending tells; some stand for themselves, so that a building has nothing to do with "build".
_IRREGULAR = dict(
    pair.split(":")
    for pair in _set(
        """
        going:go goes:go doing:do does:do men:man women:woman people:person persons:person children:child feet:foot
        teeth:tooth geese:goose mice:mouse wolves:wolf leaves:leaf knives:knife shelves:shelf scarves:scarf
        calves:calf lying:lie ran:run sat:sit stood:stand held:hold lain:lie ate:eat eaten:eat rode:ride ridden:ride
        swam:swim flew:fly flown:fly threw:throw thrown:throw caught:catch worn:wear wore:wear took:take taken:take
        drove:drive driven:drive drew:draw drawn:draw bit:bite bitten:bite hung:hang made:make wrote:write
        written:write dug:dig swung:swing tying:tie dying:die policemen:policeman gentlemen:gentleman
        firemen:fireman fishermen:fisherman ladies:lady babies:baby glasses:glasses clothes:clothes dresses:dress
        grandchildren:grandchild photos:photo tshirt:shirt skiis:ski skiing:ski skies:ski building:building
        buildings:building clothing:clothes clothed:clothes wooden:wooden
        """
    )
)

# Base forms; what is not here is never taken for the verb of a sentence.
VERBS = _set(
    """
    act aim appear approach argue ascend ask assemble attack attempt backpack balance bark bat bathe battle beg
    begin bend bike bite blow board bounce bound bow brandish break brush bubble build canoe care carry cast catch
    celebrate chase chat check cheer chew chop clap clean climb cling close collect compete contain converse cook
    cover crash crawl cross crouch cut cycle dance decorate depict descend dig dine display dive do drag draw dress
    dribble drift drink drive dunk eat embrace emerge enjoy enter examine explore face fall feed feel fetch fight
    fish fix flip float fly follow frolic gallop gather gaze get give glide go grab graze greet grin grip growl
    guard hang have help hike hiss hit hold hop hug hurdle interact jog jump kayak keep kick kiss kneel land laugh
    lay lead lean leap leave lick lie lift light listen look lounge make march meander meet mimic move nap navigate
    nod nurse observe open overlook paddle paint parachute pass pause pedal peer perch perform pet photograph pick
    pile play plow point pose pour practice prepare present press pull punch push put race raft rappel reach read
    recline relax rest retrieve return ride ring roll rollerblade rope row run sail say scale scream seem sell serve
    shake share shine shoot shop shout shovel show sing sip sit skate skateboard ski skip sled sleep slide smell
    smile smoke sniff snorkel snowboard soak sort spar speak spin splash spray sprint squat squint stack stand stare
    start step stick stop stretch stroll struggle surf surround swim swing tackle take talk taste tease throw toss
    touch tow travel traverse tread trot try tube tug tumble turn tussle twirl type use wade wait wakeboard walk
    wander wash watch waterski wave wear wind work wrap wrestle write yawn yell
    """
)
# They look like verbs ("he waves") and are things more often; verbs only right behind a person or an animal.
THINGS_IN_S = _set(
    """
    waves rocks faces boards lights ropes bikes kayaks skateboards skis rafts tubes crosses brushes paints dresses
    drinks rings grips backpacks canoes paddles bats slides swings steps leashes parachutes sticks cuts
    """
)
# Plurals that do not end in s.
PLURALS = _set("men women people children kids policemen gentlemen firemen fishermen geese sheep wolves")
# A noun that makes one verb with the next: "rock climbing".
COMPOUND = _set("rock ice ski water snow kite wind hang country bull horseback mountain cliff fly para jet")


def words(text: str) -> list[str]:
    """In lower case, hyphens as blanks, without 's: "a T-shirt, the dog's" -> [a, t, shirt, the, dog]"""
    return [w.removesuffix("'s") for w in re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower().replace("’", "'"))]


@cache
def stem(word: str) -> str:
    """Crude: "puppies" -> puppy, "riding" and "rides" -> rid. Words that share a stem are taken for one."""
    if word in _IRREGULAR:
        return word if _IRREGULAR[word] == word else stem(_IRREGULAR[word])
    if len(word) > 3 and word.endswith(("ies", "ied")):
        return word[:-3] + "y"
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
        if word.endswith(("sse", "xe", "che", "she")):
            word = word[:-1]
    for ending in ("ing", "ed"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) > 2 and re.search("[aeiouy]", rest) and not word.endswith("eed"):
            word = rest[:-1] if rest[-1] == rest[-2] and rest[-1] not in "sl" else rest
            break
    return word[:-2] + "y" if word.endswith("ie") else word.removesuffix("e") if len(word) > 3 else word


@cache
def _same() -> dict[str, str]:
    found: dict[str, str] = {}
    for line in _SAME.replace("\n", " ").split(","):
        first, *rest = (stem(w) for w in line.split())
        first = found.get(first, first)
        for w in (first, *rest):
            found.setdefault(w, first)
    return found


def concept(word: str) -> str:
    """The stem, or that of the first of the words that mean the same."""
    return _same().get(stem(word), stem(word))


PEOPLE = frozenset({"person", *PARENTS})


@cache
def _above() -> dict[str, frozenset[str]]:
    """concept -> what follows from it: poodle -> dog; boy -> child, person. Of the lists only COCO's lines and those of
    people have a first word that covers the others; a trail is no street."""
    lists = [*read_vocabulary(COCO_SYNONYMS), *((name, s) for name, s in things_vocabulary() if name in PEOPLE)]
    found: dict[str, set[str]] = {}
    for name, synonyms in lists:
        for word in synonyms if " " not in name else ():
            if " " not in word:
                found.setdefault(concept(word), set()).update(concept(n) for n in (name, *ancestors(name)))
    return {word: frozenset(names - {word}) for word, names in found.items()}


@cache
def follows(word: str) -> frozenset[str]:
    """The concept of a word and all that follows from it; from a rider that somebody rides."""
    found = {concept(word), *_above().get(concept(word), ())}
    doer = stem(word).removesuffix("er").removesuffix("r")
    if stem(word).endswith("er"):
        found |= {concept(verb) for verb in VERBS if stem(verb) in (doer, doer[:-1])}
    return frozenset(found)


def content(text: str) -> list[str]:
    """The words that claim something, in order; numbers are counted elsewhere."""
    return [w for w in words(text) if w not in STOP and w not in NUMBERS and (len(w) > 1 or w.isdigit())]
