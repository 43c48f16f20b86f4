"""A component of torchx: DDP by torchrun, with the rendezvous in etcd.

torchx's own `dist.ddp` takes `--rdzv_backend etcd-v3`, but always names the host of replica 0 as the
endpoint. This one takes the endpoint.

    torchx run --scheduler local_cwd etcd_ddp.py:ddp --script train.py --j 1:2x1 \
        --endpoint etcd-1:2379,etcd-2:2379,etcd-3:2379
"""

# No `from __future__ import annotations`: torchx reads the types.
from torchx import specs


def ddp(
    *script_args: str,
    script: str,
    endpoint: str,
    j: str = "1:2x1",
    rdzv_conf: str = "last_call_timeout=30",
    max_restarts: int = 10,
    name: str = "train",
    image: str = "",
    cpu: int = 1,
    gpu: int = 0,
    memMB: int = 2048,  # noqa: N803 - torchx's name
) -> specs.AppDef:
    """Train on `j` = {least}:{most}x{workers} nodes.

    Args:
        script_args: arguments of the script
        script: the training script
        endpoint: endpoints of etcd, separated by commas
        j: {least}:{most}x{workers per node}
        rdzv_conf: parameters of torchetcd
        max_restarts: how often the workers of a node may fail
        name: the name of the job
        image: the image, for schedulers that have images
        cpu: processors of a node
        gpu: GPUs of a node
        memMB: memory of a node
    """
    nodes, _, workers = j.partition("x")
    least, _, most = nodes.rpartition(":")
    return specs.AppDef(
        name=name,
        roles=[
            specs.Role(
                name="node",
                image=image,
                entrypoint="torchrun",
                num_replicas=int(most),
                min_replicas=int(least or most),
                resource=specs.resource(cpu=cpu, gpu=gpu, memMB=memMB),
                # The scheduler restarts each node that fails.
                max_retries=max_restarts,
                args=[
                    "--nnodes", f"{least or most}:{most}",
                    "--nproc-per-node", workers,
                    "--max-restarts", str(max_restarts),
                    "--rdzv-backend", "etcd-v3",
                    "--rdzv-endpoint", endpoint,
                    # torchx gives each job its own id.
                    "--rdzv-id", specs.macros.app_id,
                    "--rdzv-conf", rdzv_conf,
                    script, *script_args,
                ],
            )
        ],
    )  # fmt: skip
