#!/bin/bash
# One run on one machine with eight GPUs, which need only one process:
#     ./eight_gpus.sh --config=gpt2:1558m --workdir=runs/gpt2
# `mesh.fsdp=8` splits parameters and optimizer state; leave it out if they fit on each GPU.
# The same command continues a run that was stopped (exit code 75).
exec gpt2-jax train --config.mesh.fsdp=8 "$@"
