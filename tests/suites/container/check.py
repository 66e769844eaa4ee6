"""What no schema knows about the manifests: check.py SWAPFS DAEMONSET POD."""

import subprocess
import sys

import yaml

MIB = 1 << 20
UNITS = {"Mi": MIB, "Gi": 1 << 30}


def bytes_of(text):
    return int(text[:-2]) * UNITS[text[-2:]]


def single(items, what):
    assert len(items) == 1, f"one {what}, not {items}"
    return items[0]


def main(swapfs, daemonset, pod):
    with open(daemonset) as file:
        documents = {document["kind"]: document for document in yaml.safe_load_all(file)}
    spec = documents["DaemonSet"]["spec"]["template"]["spec"]
    container = single(spec["containers"], "container")
    args = container["args"]
    assert args[:2] == ["mount", "--foreground"], "the daemon has to be the container's first process"
    options, (swap_folder, mountpoint) = args[args.index("-o") + 1], args[-2:]

    shown = subprocess.run([swapfs, "config", "show", "-o", options, "--json"], stdout=subprocess.PIPE, check=True, text=True).stdout
    config = yaml.safe_load(shown)
    pool = config["pool_size"]["value"]
    assert config["allow_other"]["value"], "pods of other users need allow_other"
    limit = bytes_of(container["resources"]["limits"]["memory"])
    assert limit >= pool + 64 * MIB, f"a memory limit of {limit} is less than the pool and 64 MiB"
    grace, needed = spec["terminationGracePeriodSeconds"], 60 + -(-pool // (50 * MIB))
    assert grace >= needed, f"{needed} s may be needed to write the pool, not {grace}"

    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert swap_folder in mounts, f"{swap_folder} is no volume"
    shared = mounts[mountpoint.rsplit("/", 1)[0]]
    assert shared["mountPropagation"] == "Bidirectional" and container["securityContext"]["privileged"]
    hook = container["lifecycle"]["preStop"]["exec"]["command"]
    assert hook[:2] == ["swapfs", "umount"] and hook[-1] == mountpoint, hook
    assert int(hook[hook.index("--timeout") + 1]) < grace
    for command in (args, hook[1:], container["readinessProbe"]["exec"]["command"][1:]):
        # --help after all the rest: what is wrong before it is told instead.
        subprocess.run([swapfs, *command, "--help"], stdout=subprocess.DEVNULL, check=True)

    with open(pod) as file:
        user = yaml.safe_load(file)["spec"]
    theirs = single(single(user["containers"], "container")["volumeMounts"], "mount")
    assert theirs["mountPropagation"] == "HostToContainer"
    volume = single(user["volumes"], "volume")["hostPath"]["path"]
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"]}
    assert volume == volumes[shared["name"]], "the pod looks elsewhere"
    print("container: the manifests agree with the program")


main(*sys.argv[1:])
