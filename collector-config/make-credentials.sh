#!/bin/sh
# Credentials for trying things out: an authority, one certificate for all parts, a token for the
# gateway. In production certificates come from your own authority (cert-manager, Vault, step-ca),
# and each part has its own.
#
#   make-credentials.sh DIRECTORY [HOST...]     the hosts that the certificate is good for
#
# Leaves in DIRECTORY: ca.pem, tls.pem, tls.key; sink.token (for the gateway), tokens.toml (for the
# sink). Does nothing where they are already.
set -eu
directory=$1
shift
names=DNS:localhost,IP:127.0.0.1
for host in "$@"; do names=$names,DNS:$host; done
mkdir -p "$directory"
cd "$directory"
[ -e sink.token ] && exit 0

curve='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
# shellcheck disable=SC2086 - several words, as they stand
openssl req -x509 $curve -days 30 -subj /CN=otel-audit-authority -keyout ca.key -out ca.pem
# shellcheck disable=SC2086
openssl req $curve -subj /CN=otel-audit -keyout tls.key -out tls.csr
echo "subjectAltName=$names" >tls.ext
openssl x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile tls.ext -out tls.pem
rm tls.csr tls.ext ca.key

otel-audit serve token new gateway --file tokens.toml >sink.token.new
mv sink.token.new sink.token
