#!/bin/bash
# One run on all hosts of a Cloud TPU slice. Create the slice first, for example:
#     gcloud compute tpus tpu-vm create gpt2 --zone=us-west4-a --accelerator-type=v5litepod-16 \
#         --version=v2-alpha-tpuv5-lite
# and then:
#     TPU=gpt2 ZONE=us-west4-a REPOSITORY=https://github.com/ME/gpt2_jax \
#         ./tpu_pod.sh --config=gpt2:1558m --workdir=/mnt/shared/runs/gpt2
# /mnt/shared must be a disk that all hosts mount, such as Filestore; a bucket will not do.
set -euo pipefail

on_all_hosts() {
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

on_all_hosts "test -d gpt2_jax || git clone --quiet $REPOSITORY gpt2_jax
cd gpt2_jax && make install EXTRA=tpu"

# jax finds the hosts of the slice by itself. With every new start, all hosts must start.
flags=$(printf ' %q' "$@")
until on_all_hosts "cd gpt2_jax && .venv/bin/gpt2-jax train$flags"; do
    code=$?
    if [ "$code" -ne 75 ] && [ "$code" -ne 76 ]; then
        exit "$code"
    fi
    sleep 30
done
