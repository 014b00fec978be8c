"""Making stage 2's pairs: the stage-1 model describes photos, rules and human captions repair and drop what it says."""
