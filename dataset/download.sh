#!/usr/bin/env bash
# A TSV of captions and URLs -> webdataset shards (10,000 pairs each: .jpg, .json, .txt), by img2dataset.
# Run by download_laion.sh and download_cc_sbu.sh. Run it again after a stop: finished shards are kept.
#
#   PROCESSES            processes (16)
#   THREADS              downloads at a time in each process (128)
#   PYTHON               the Python that makes img2dataset's environment (python3)
#   IMG2DATASET_VENV     where that environment is (below ~/.cache/minigpt4)
set -euo pipefail

if [[ $# -lt 2 ]]; then
    echo "usage: $0 LIST.tsv OUTPUT_FOLDER [more img2dataset flags]" >&2
    exit 2
fi
list=$1
output=$2
shift 2

if [[ ! -f $list ]]; then
    echo "error: $list: no such file; make it with convert_laion.py or convert_cc_sbu.py" >&2
    exit 2
fi

# img2dataset wants webdataset < 0.3 and training wants 1.x: two environments.
version=1.47.0
venv=${IMG2DATASET_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/minigpt4/img2dataset-$version}
if [[ ! -f $venv/.complete ]]; then
    echo "making $venv with img2dataset $version (once)" >&2
    "${PYTHON:-python3}" -m venv --clear "$venv"
    "$venv/bin/python" -m pip install --quiet "img2dataset==$version"
    touch "$venv/.complete"
fi

# "border" keeps the whole picture: its long side becomes 256 px, white fills the square.
NO_ALBUMENTATIONS_UPDATE=1 exec "$venv/bin/img2dataset" \
    --url_list "$list" --input_format tsv --url_col url --caption_col caption \
    --output_format webdataset --output_folder "$output" \
    --image_size 256 --resize_mode border \
    --processes_count "${PROCESSES:-16}" --thread_count "${THREADS:-128}" \
    "$@"
