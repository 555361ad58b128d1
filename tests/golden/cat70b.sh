# --- cathpc.pull.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=8
#SBATCH --job-name=cathpc.pull.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=128GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/pull/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/pull/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/pull/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m cathpc.dispatch.job /here/store/pull/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.base.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=8
#SBATCH --job-name=cathpc.base.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/base/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/base/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/base/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m cathpc.dispatch.job /here/store/base/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.reference.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=8
#SBATCH --dependency='afterok:<pull>'
#SBATCH --gres=gpu:1
#SBATCH --job-name=cathpc.reference.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/reference/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/reference/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/reference/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m cathpc.dispatch.job /here/store/reference/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.pool.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=8
#SBATCH --dependency='afterok:<pull>'
#SBATCH --gres=gpu:1
#SBATCH --job-name=cathpc.pool.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/pool/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/pool/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/pool/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m cathpc.dispatch.job /here/store/pool/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.refusal.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=16
#SBATCH --dependency='afterok:<pull>'
#SBATCH --gres=gpu:1
#SBATCH --job-name=cathpc.refusal.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/refusal/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/refusal/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/refusal/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=16 PYTHON -u -m cathpc.dispatch.job /here/store/refusal/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.score.unknown.dryrun.w0.0 ---
#!/bin/bash

# Parameters
#SBATCH --array=0-63%64
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=16
#SBATCH --dependency='afterok:<pull>:<reference>:<pool>:<refusal>'
#SBATCH --job-name=cathpc.score.unknown.dryrun.w0.0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/score/%A_%a_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/score/unknown/.jobs/spec-dryrun-w0.0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/score/%A_%a_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=16 PYTHON -u -m cathpc.dispatch.job /here/store/score/unknown/.jobs/spec-dryrun-w0.0.json

# --- cathpc.score.unknown.dryrun.f ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=2
#SBATCH --dependency='afterok:<pull>:<reference>:<pool>:<refusal>,afterany:<score.0>'
#SBATCH --job-name=cathpc.score.unknown.dryrun.f
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/score/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/score/unknown/.jobs/spec-dryrun-f.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/score/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=2 PYTHON -u -m cathpc.dispatch.job /here/store/score/unknown/.jobs/spec-dryrun-f.json

# --- cathpc.select.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=8
#SBATCH --dependency='afterok:<pull>:<score>'
#SBATCH --job-name=cathpc.select.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/select/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/select/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/select/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m cathpc.dispatch.job /here/store/select/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.cards.unknown.dryrun.w0.0 ---
#!/bin/bash

# Parameters
#SBATCH --array=0-3%4
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=16
#SBATCH --dependency='afterok:<select>'
#SBATCH --gres=gpu:4
#SBATCH --job-name=cathpc.cards.unknown.dryrun.w0.0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=256GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/cards/%A_%a_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=2880

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/cards/unknown/.jobs/spec-dryrun-w0.0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/cards/%A_%a_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=16 PYTHON -u -m cathpc.dispatch.job /here/store/cards/unknown/.jobs/spec-dryrun-w0.0.json

# --- cathpc.cards.unknown.dryrun.f ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=2
#SBATCH --dependency='afterok:<select>,afterany:<cards.0>'
#SBATCH --job-name=cathpc.cards.unknown.dryrun.f
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=256GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/cards/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=2880

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/cards/unknown/.jobs/spec-dryrun-f.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/cards/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=2 PYTHON -u -m cathpc.dispatch.job /here/store/cards/unknown/.jobs/spec-dryrun-f.json

# --- cathpc.pack.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=8
#SBATCH --dependency='afterok:<cards>:<base>'
#SBATCH --job-name=cathpc.pack.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/pack/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/pack/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/pack/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m cathpc.dispatch.job /here/store/pack/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.train.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=8
#SBATCH --dependency='afterok:<pack>:<base>'
#SBATCH --exclusive
#SBATCH --gres=gpu:8
#SBATCH --job-name=cathpc.train.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=1000GB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/train/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@1200
#SBATCH --time=20160

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/train/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back
srun --ntasks-per-node=1 --ntasks=2 --kill-on-bad-exit=0 PYTHON -u -m cathpc.dispatch.health /here/store/train/unknown/.jobs/spec-dryrun-s0.json || exit 75

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/train/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m cathpc.dispatch.job /here/store/train/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.export.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=16
#SBATCH --dependency='afterok:<train>:<base>:<pack>:<pull>:<reference>:<pool>:<refusal>:<select>:<cards>'
#SBATCH --job-name=cathpc.export.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/export/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/export/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/export/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=16 PYTHON -u -m cathpc.dispatch.job /here/store/export/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.evaluate.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=16
#SBATCH --dependency='afterok:<export>:<base>:<train>:<pack>:<reference>:<refusal>'
#SBATCH --gres=gpu:2
#SBATCH --job-name=cathpc.evaluate.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=163GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/evaluate/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/evaluate/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/evaluate/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=16 PYTHON -u -m cathpc.dispatch.job /here/store/evaluate/unknown/.jobs/spec-dryrun-s0.json

# --- cathpc.report.unknown.dryrun.s0 ---
#!/bin/bash

# Parameters
#SBATCH --comment=cat70b
#SBATCH --cpus-per-task=8
#SBATCH --dependency='afterok:<pull>:<base>:<reference>:<pool>:<refusal>:<score>:<select>:<cards>:<pack>:<train>:<export>:<evaluate>'
#SBATCH --job-name=cathpc.report.unknown.dryrun.s0
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/cat70b/logs/report/%j_0_log.out
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@60
#SBATCH --time=1440

# setup
umask 077
export WANDB_MODE=offline
export NCCL_DEBUG=WARN
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1
cathpc_end() {
  code=$?
  trap '' TERM USR2
  PYTHON -m cathpc.dispatch.attempt /here/store/report/unknown/.jobs/spec-dryrun-s0.json "$code" "$SECONDS"
  exit $?
}
trap cathpc_end EXIT
trap : TERM USR2  # the job's own processes answer them; this shell lives on to bring the job back

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/cat70b/logs/report/%j_%t_log.out --export=ALL --kill-on-bad-exit=1 --cpus-per-task=8 PYTHON -u -m cathpc.dispatch.job /here/store/report/unknown/.jobs/spec-dryrun-s0.json
