#!/bin/sh
# Two machines on one: two network namespaces joined by a wire, a torchrun in each, one process each, over TCP.
# Needs root and iproute2. Then the same run as one machine with two processes; the losses are compared.
#   sh tests/two_hosts.sh [PYTHON]
set -eu
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
scratch=$(mktemp -d)
end() { ip netns del host_a 2>/dev/null || true; ip netns del host_b 2>/dev/null || true; rm -rf "$scratch"; }
trap end EXIT
export HF_HUB_OFFLINE=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 PYTHONPATH=tests:.

"$python" - "$scratch" <<'PY'
import sys
from pathlib import Path
from training import lay_config, lay_data, lay_model
folder = Path(sys.argv[1])
model, data = lay_model(Path("tests/golden/data/a"), folder / "model"), lay_data(folder / "data")
for name in ("two_hosts", "one_host"):
    lay_config(folder, model, data, "stage2", name, run={"batch_size_train": 2})
PY

ip netns add host_a; ip netns add host_b
ip link add wire_a netns host_a type veth peer name wire_b netns host_b
for side in a b; do
  ip -n host_$side link set lo up
  ip -n host_$side link set wire_$side up
done
ip -n host_a addr add 10.77.0.1/24 dev wire_a
ip -n host_b addr add 10.77.0.2/24 dev wire_b

host() {  # host a|b: torchrun on that machine
  ip netns exec "host_$1" env GLOO_SOCKET_IFNAME="wire_$1" "$python" -m torch.distributed.run \
    --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint 10.77.0.1:29400 --rdzv-id soak \
    --rdzv-conf "is_host=$([ "$1" = a ] && echo 1 || echo 0)" \
    --local-addr "10.77.0.$([ "$1" = a ] && echo 1 || echo 2)" --max-restarts 2 \
    train.py --cfg-path "$scratch/two_hosts.yaml"
}
host a > "$scratch/a.txt" 2>&1 &
first=$!
host b > "$scratch/b.txt" 2>&1 || { cat "$scratch/a.txt" "$scratch/b.txt"; exit 1; }
wait $first || { cat "$scratch/a.txt"; exit 1; }
"$python" -m torch.distributed.run --standalone --nproc-per-node 2 train.py --cfg-path "$scratch/one_host.yaml" \
  > "$scratch/one.txt" 2>&1 || { cat "$scratch/one.txt"; exit 1; }

"$python" - "$scratch" <<'PY'
import json, sys
from pathlib import Path
losses = [[json.loads(row)["loss"] for row in (Path(sys.argv[1]) / name / "log.jsonl").read_text().splitlines()]
          for name in ("two_hosts", "one_host")]
worst = max(abs(a - b) for a, b in zip(*losses, strict=True))
print(f"{len(losses[0])} steps on two hosts; largest difference from two processes on one host: {worst:.1e}")
sys.exit(worst > 1e-5)
PY
