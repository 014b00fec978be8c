"""laion_synthetic_filtered_large.json -> .tsv; the work is in convert.py beside it."""

import sys

from convert import main

if __name__ == "__main__":
    sys.exit(main("laion_synthetic_filtered_large"))
