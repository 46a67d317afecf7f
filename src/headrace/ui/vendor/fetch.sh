#!/usr/bin/env bash
# Fetches the packages that README names from npm, and compares each file with ours and with its SHA-256.
set -euo pipefail
cd "$(dirname "$0")"
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
awk '$NF ~ /^[0-9a-f]+$/ && length($NF) == 64 { print $1, $2, $3, $NF }' README | while read -r file package version hash; do
  if [ ! -d "$place/$package" ]; then
    mkdir "$place/$package"
    (cd "$place/$package" && npm pack --silent "$package@$version" >/dev/null && tar xzf ./*.tgz)
  fi
  cmp "$place/$package/package/dist/$file" "$file"
  echo "$hash  $file" | sha256sum --check --quiet
  echo "$file is that of $package $version"
done
