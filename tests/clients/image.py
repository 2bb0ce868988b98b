"""Writes an OCI layout that holds the index of a multi-platform image: `image.py DIR BUSYBOX MIB_PER_LAYER LAYERS`.

The layers are random bytes, so that nothing compresses or deduplicates them away; the last one of linux/amd64 holds the
static busybox, so that the image runs.
"""

import hashlib
import io
import json
import os
import sys
import tarfile


def main(layout, busybox, layer_mib, layer_count):
    os.makedirs(f"{layout}/blobs/sha256", exist_ok=True)
    amd64 = [random_layer(f"data{n}", layer_mib) for n in range(layer_count - 1)] + [busybox_layer(busybox)]
    arm64 = [random_layer("other", 1)]
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [image(layout, "amd64", amd64), image(layout, "arm64", arm64)],
    }
    top = descriptor(layout, index["mediaType"], encode(index))
    top["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    write(f"{layout}/oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
    write(f"{layout}/index.json", encode({"schemaVersion": 2, "manifests": [top]}))


def image(layout, architecture, layers):
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]},
        # Layers are plain tar, so the digest of the content is that of the blob.
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor(layout, "application/vnd.oci.image.config.v1+json", encode(config)),
        "layers": [descriptor(layout, "application/vnd.oci.image.layer.v1.tar", layer) for layer in layers],
    }
    found = descriptor(layout, manifest["mediaType"], encode(manifest))
    found["platform"] = {"architecture": architecture, "os": "linux"}
    return found


def random_layer(name, mib):
    return tar([(name, os.urandom(mib << 20), 0o644)])


def busybox_layer(path):
    with open(path, "rb") as file:
        program = file.read()
    links = ["sh", "echo", "sha256sum", "cat"]
    return tar([("bin/busybox", program, 0o755)], [(f"bin/{name}", "busybox") for name in links])


def tar(files, links=()):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content, mode in files:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), mode
            archive.addfile(info, io.BytesIO(content))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return out.getvalue()


def descriptor(layout, media_type, content):
    name = digest(content)
    write(f"{layout}/blobs/{name.replace(':', '/')}", content)
    return {"mediaType": media_type, "digest": name, "size": len(content)}


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def encode(value):
    return json.dumps(value).encode()


def write(path, content):
    with open(path, "wb") as file:
        file.write(content)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
