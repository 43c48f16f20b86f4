#!/bin/sh
# What a unit test finds where etcd should be (tests/conftest.py).
echo "A unit test starts no etcd: use a fixture that does, or mark the test with pytest.mark.needs_etcd." >&2
exit 1
