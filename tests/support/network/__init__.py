"""What stands between clients and etcd, and loses, delays or breaks what passes."""
