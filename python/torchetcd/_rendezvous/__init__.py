"""The rendezvous of torch's agents: what `torchetcd.etcd_rendezvous` and its backend are made of."""
