"""The networks people have: which have a finite Lipschitz bound, and what stops the others.

    python benchmarks/architectures.py [--only keras:ResNet] [--limit 5] [--seconds 300] [--gigabytes 6]

Each network has a process of its own, which ends when it takes too long or too much memory. They are untrained:
`keras.applications` with `weights=None`, torchvision and timm exported by both of PyTorch's exporters, what `package`
finds of ONNX and Keras files in installed packages. What is not installed has no rows.
"""

import argparse
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from tables import write_table

HEADER = ["network", "from", "upper end", "CPU seconds", "memory", "what stops it"]
KERAS = (
    "VGG16", "VGG19", "ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2", "InceptionV3",
    "InceptionResNetV2", "Xception", "DenseNet121", "DenseNet169", "DenseNet201", "MobileNet", "MobileNetV2",
    "MobileNetV3Small", "MobileNetV3Large", "NASNetMobile", "NASNetLarge", "EfficientNetB0", "EfficientNetB7",
    "EfficientNetV2B0", "EfficientNetV2S", "ConvNeXtTiny", "ConvNeXtBase",
)  # fmt: skip
TORCHVISION = (
    "alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121",
    "squeezenet1_1", "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5",
    "shufflenet_v2_x0_5", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny",
    "vit_b_16", "swin_t",
)  # fmt: skip
TIMM = (
    "resnet26", "resnetv2_50", "repvgg_a0", "mixer_s32_224", "convmixer_768_32", "dla34", "hrnet_w18_small",
    "ghostnet_100", "rexnet_100", "darknet53", "cspresnet50", "selecsls42b", "tf_mobilenetv3_small_minimal_100",
    "vit_tiny_patch16_224", "poolformer_s12",
)  # fmt: skip
PACKAGES = ("rapidocr-onnxruntime", "silero-vad", "cifar-10-model", "basic-pitch", "guesslang", "onnx")
ENDINGS = (".onnx", ".keras", ".h5")
SIZES = dict.fromkeys(("vit_b_16", "swin_t", "alexnet", "vgg11", "vgg11_bn"), 224)  # torchvision's that take no other
PIXELS = 96


def networks() -> Iterator[str]:
    """Yield the names of networks: where from, and which."""
    if importlib.util.find_spec("keras"):
        yield from (f"keras:{name}" for name in KERAS)
    for package, names in (("torchvision", TORCHVISION), ("timm", TIMM)):
        if importlib.util.find_spec(package):
            yield from (f"{package} {way}:{name}" for name in names for way in ("script", "dynamo"))
    for package in PACKAGES:
        yield from (f"file:{path}" for path in files_of(package))


def files_of(package: str) -> Iterator[Path]:
    """Yield the files of networks that an installed package ships, with a SavedModel its folder."""
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return
    for file in listed:
        path = Path(str(file.locate()))
        if path.name == "saved_model.pb":
            yield path.parent
        elif path.suffix in ENDINGS and path.stat().st_size > 10_000 and not path.name.endswith(".weights.h5"):
            yield path


def bound_of(network: str, folder: str, limit: float) -> Any:
    """Return the bound of a network and the CPU seconds it took, without making the network."""
    source, _, name = network.partition(":")
    made = make(source, name, folder)
    from opnorm.networks.lipschitz import lipschitz_bound

    begin = time.process_time()
    bound = lipschitz_bound(made, time_limit=limit)
    return bound, time.process_time() - begin


def make(source: str, name: str, folder: str) -> Any:
    """Return a Keras model, or the path of a file."""
    warnings.simplefilter("ignore")
    if source == "file":
        return name
    if source == "keras":
        applications = importlib.import_module("keras.applications")
        return getattr(applications, name)(weights=None, input_shape=(PIXELS, PIXELS, 3))
    package, way = source.split()
    torch = importlib.import_module("torch")
    torch.manual_seed(0)
    module, size = module_of(package, name)
    path = str(Path(folder) / "network.onnx")
    example = torch.zeros(1, module_channels(module), size, size)
    torch.onnx.export(module.eval(), (example,), path, dynamo=way == "dynamo")
    return path


def module_of(package: str, name: str) -> tuple[Any, int]:
    for part in ("_meta_registrations", "_autograd_registrations"):  # of operators that PyPI's wheel has on GPUs alone
        sys.modules[f"torchvision.{part}"] = ModuleType(part)
    if package == "timm":
        module = importlib.import_module("timm").create_model(name)
        return module, module.default_cfg["input_size"][-1] if module.default_cfg.get("fixed_input_size") else PIXELS
    models = importlib.import_module("torchvision.models")
    return models.get_model(name, weights=None), SIZES.get(name, PIXELS)


def module_channels(module: Any) -> int:
    return getattr(module, "default_cfg", {}).get("input_size", (3,))[0]


def told(network: str, limit: float) -> None:
    """Print what is found of a network, for the process that waits for it."""
    with TemporaryDirectory() as folder:
        bound, seconds = bound_of(network, folder, limit)
    stops = Counter(f"{step.kind}: {step.rule}" for step in bound.unknown)
    print(json.dumps({"upper": bound.upper, "seconds": seconds, "stops": stops.most_common(), "notes": bound.notes}))


def watched(network: str, arguments: argparse.Namespace) -> tuple[dict[str, Any], float]:
    """Return what a process of its own finds of a network, and its largest memory in GiB."""
    command = [sys.executable, __file__, "--one", network, "--limit", str(arguments.limit)]
    seconds, gigabytes = arguments.seconds, arguments.gigabytes
    backend = "jax" if "NASNet" in network else "torch"  # which Keras says does not build it
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    begin, most = time.monotonic(), 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as child:
        while child.poll() is None:
            time.sleep(0.2)
            most = max(most, resident(child.pid))
            if most > gigabytes or time.monotonic() - begin > seconds:
                child.kill()
                return {
                    "failed": f"more than {gigabytes:g} GiB" if most > gigabytes else f"more than {seconds:g} s"
                }, most
        output, errors = child.communicate()
    lines = [line for line in output.splitlines() if line.startswith('{"upper"')]
    last = (errors.strip().splitlines() or ["no word"])[-1]
    return json.loads(lines[-1]) if lines else {"failed": last[:200]}, most


def resident(process: int) -> float:
    """Return the memory that a process has, in GiB."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("VmRSS:")), 0.0)


def row(network: str, arguments: argparse.Namespace) -> list[str]:
    found, most = watched(network, arguments)
    source, _, name = network.partition(":")
    name = "/".join(Path(name).parts[-2:]) if source == "file" else name
    if "failed" in found:
        return cells(name, source, "", "", f"{most:.1f} GiB", found["failed"])
    upper = "unknown" if found["upper"] is None else f"{found['upper']:.4g}"
    stops = "; ".join(f"{count} {why}" for why, count in found["stops"][:3])
    stops += f"; {len(found['stops']) - 3} more kinds" if len(found["stops"]) > 3 else ""
    stops = stops or ("" if found["upper"] is not None else "; ".join(found["notes"]))
    return cells(name, source, upper, f"{found['seconds']:.1f}", f"{most:.1f} GiB", stops)


def cells(*texts: str) -> list[str]:
    clean = [text.replace("|", "\\|").replace("\n", " ") for text in texts]
    print(*clean, sep=" | ", flush=True)
    return clean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="what a network's name, `keras:VGG16` say, starts with")
    parser.add_argument("--limit", type=float, default=5, help="seconds for each kernel")
    parser.add_argument("--seconds", type=float, default=300, help="for one network, making it included")
    parser.add_argument("--gigabytes", type=float, default=6, help="of one network's process")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        told(arguments.one, arguments.limit)
        return
    chosen = [network for network in networks() if network.startswith(arguments.only)]
    rows = [row(network, arguments) for network in chosen]
    if not arguments.only:
        write_table("architectures", HEADER, rows)


if __name__ == "__main__":
    main()
