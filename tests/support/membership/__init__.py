"""A model of the quorum inside the job: etcd's membership, the agents, their faults, and what must hold."""
