"""The table of checks, and how it is worked through."""

from dataclasses import replace

from ...common.errors import UserError
from . import files, llm, machine
from .context import Context
from .page import WRONG, Finding, of_error


def check_config(context: Context) -> list[Finding]:
    """The config has no unknown key, wrong value, placeholder or missing file."""
    return [Finding(WRONG, text, name=key) for key, text in context.problems.items()]


# (section of the page, the key or word that the finding stands beside, check), in the order of the page. A check takes
# the Context and returns a Finding, several, or None where it does not apply.
CHECKS = (
    ("Machine", "versions", machine.check_versions),
    ("Machine", "device", machine.check_device),
    ("Machine", "precision", machine.check_precision),
    ("Machine", "memory", machine.check_memory),
    ("Machine", "disk", machine.check_disk),
    ("Config", "", check_config),
    ("Files", "model.vit_ckpt", files.check_vit),
    ("Files", "model.q_former_model", files.check_qformer),
    ("Files", "model.llama_model", llm.check_llm),
    ("Files", "model.ckpt", files.check_ckpt),
    ("Files", "datasets", files.check_data),
    ("Language", "tokenizer", llm.check_tokenizer),
    ("Language", "model.conv_template", llm.check_template),
    ("Language", "model", llm.check_training_form),
)


def make_checks(context: Context) -> Context:
    """Make every check of CHECKS. Of a key with a problem in the config, only that problem is told; and a fault of a
    file that several checks read is told once."""
    told = set()
    for section, name, check in CHECKS:
        try:
            found = () if name in context.problems else check(context) or ()
        except UserError as error:
            found = of_error(error)
        for finding in [found] if isinstance(found, Finding) else found:
            finding = replace(finding, section=section, name=finding.name or name)
            known = finding.mark == WRONG and finding.text in told
            if not known and (check is check_config or finding.name not in context.problems):
                context.findings.append(finding)
                told.add(finding.text)
    return context
