#!/bin/sh
# Copyright (c) edgeml.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Unpack a Python of Debian unstable with the libraries that it needs, and write a program that starts it:
# newest_python.sh 3.14 DIRECTORY. Nothing is installed.
set -eu
version=$1 directory=$(realpath -m "$2")
root=$directory/root-$version
if [ ! -e "$root" ]; then
    mkdir -p "$directory"
    rm -rf "$root.new" && mkdir "$root.new"
    # A mirror may be behind: what matters here is the interpreter, not its age.
    mmdebstrap --quiet --aptopt='Acquire::Check-Valid-Until "false"' --variant=extract \
        --include="python$version-minimal,libpython$version-stdlib,libpython$version-minimal,libc6,libssl3t64,zlib1g,libexpat1,libffi8,libbz2-1.0,liblzma5,libzstd1" \
        unstable "$directory/root.tar"
    tar -C "$root.new" --exclude='./dev/*' -xf "$directory/root.tar"
    rm "$directory/root.tar"
    mv "$root.new" "$root"
fi
libraries=$(dirname "$(find "$root/usr/lib" -name 'ld-linux-*.so.*' | head -n 1)")
cat > "$directory/python$version" <<EOF
#!/bin/sh
PYTHONHOME=$root/usr exec $(find "$libraries" -name 'ld-linux-*.so.*' | head -n 1) --argv0 "\$0" --library-path $libraries $root/usr/bin/python$version "\$@"
EOF
chmod +x "$directory/python$version"
"$directory/python$version" --version
