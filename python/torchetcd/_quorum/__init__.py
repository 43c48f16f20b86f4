"""A quorum inside the job: `--rdzv-endpoint job://host-a,host-b,host-c`.

Agents of the job run the members of a real etcd, so nothing has to be operated beside the job.
docs/quorum.md describes it.
"""
