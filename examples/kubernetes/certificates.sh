#!/bin/sh
# Certificates for the etcd of etcd.yaml and its clients: a CA, one certificate for the three members, one
# for jobs. With arguments, other names of the server: certificates.sh FOLDER [DNS:name|IP:address ...].
#
#   sh certificates.sh certificates
#   kubectl create secret generic etcd-server --from-file=certificates/ca.pem \
#       --from-file=certificates/server.pem --from-file=certificates/server-key.pem
#   kubectl create secret generic etcd-client --from-file=certificates/ca.pem \
#       --from-file=certificates/client.pem --from-file=certificates/client-key.pem
#
# Keep ca-key.pem out of the cluster: anybody who has it can make certificates. They are valid for a year (DAYS).
set -eu

folder=${1:?give the folder to write to}
shift
days=${DAYS:-365}
# The members of the StatefulSet, as the jobs and the members themselves name them.
[ $# -gt 0 ] || set -- DNS:etcd-0.etcd DNS:etcd-1.etcd DNS:etcd-2.etcd DNS:localhost IP:127.0.0.1
names=$(IFS=,; echo "$*")

umask 077
mkdir -p "$folder"
cd "$folder"

key() {
    openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1-key.pem"
}

if [ ! -f ca.pem ]; then
    key ca
    openssl req -x509 -new -key ca-key.pem -days "$days" -out ca.pem -subj "/CN=etcd CA" \
        -addext "keyUsage=critical,keyCertSign,cRLSign"
fi

# Members are servers for all clients, and clients of each other.
sign() { # name, usage, subject names
    key "$1"
    openssl req -new -key "$1-key.pem" -subj "/CN=$1" -out "$1.csr"
    printf 'basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage=%s\n' "$2" > "$1.ext"
    [ -z "$3" ] || printf 'subjectAltName=%s\n' "$3" >> "$1.ext"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days "$days" \
        -extfile "$1.ext" -out "$1.pem"
    rm "$1.csr" "$1.ext"
}

sign server serverAuth,clientAuth "$names"
sign client clientAuth ""
