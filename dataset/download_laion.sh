#!/usr/bin/env bash
# laion_synthetic_filtered_large.tsv -> laion_dataset/00000.tar ... in the working directory.
# Arguments go on to img2dataset; download.sh says which variables set processes and threads.
set -euo pipefail

exec "$(dirname "${BASH_SOURCE[0]}")/download.sh" laion_synthetic_filtered_large.tsv laion_dataset "$@"
