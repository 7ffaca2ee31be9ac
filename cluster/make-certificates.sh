#!/bin/sh
# Make the certificates that Ray's TLS needs: one authority, and a key pair for each node, by its address.
#   make-certificates.sh FOLDER IP...
# Then copy FOLDER/IP to its node, and there only; FOLDER/ca.key stays here. See cluster/security.md.
set -eu
umask 077

if [ $# -lt 2 ]; then
    echo "usage: $0 FOLDER IP..." >&2
    exit 2
fi
folder=$1
shift
days=365 # then they end, and nodes no longer talk to one another: make new ones before

mkdir -p "$folder"
if [ ! -e "$folder/ca.key" ]; then # more nodes later get the same authority
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days "$days" \
        -subj "/CN=dino-ray cluster" -keyout "$folder/ca.key" -out "$folder/ca.crt" 2>/dev/null
fi
for ip in "$@"; do
    node=$folder/$ip
    mkdir -p "$node"
    openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
        -subj "/CN=$ip" -keyout "$node/node.key" -out "$node/node.csr" 2>/dev/null
    # Nodes are both: servers to one another and clients. They call themselves by loopback as well.
    printf 'subjectAltName=IP:%s,IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n' "$ip" >"$node/node.ext"
    openssl x509 -req -in "$node/node.csr" -CA "$folder/ca.crt" -CAkey "$folder/ca.key" -CAcreateserial \
        -days "$days" -extfile "$node/node.ext" -out "$node/node.crt" 2>/dev/null
    rm "$node/node.csr" "$node/node.ext"
    cp "$folder/ca.crt" "$node/ca.crt"
done
