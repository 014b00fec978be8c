"""Files that `minigpt4 export-hf` puts into the folder as they are."""
