"""The same model on paper for `coupling="global"`: what the samples of all devices cost in one game, under K-FAC.

    python -m benchmarks.scaling_global [--devices 32] [--batch 4096]

A device sends what its samples need to meet those of the others, forms the rows of its own samples, sends these, and
solves for all samples. A layer whose samples would send more than `gram_memory` allows stays within a device.
"""

import argparse

from bellman_tf.curvature.gram.across_replicas import GLOBAL_BATCH, sendable, sent_numbers
from bellman_tf.curvature.gram.plan import LIMITS
from benchmarks.scaling_counts import FLOAT, Network, of_sgd, of_solve, resnet, vit


def report(network: Network, batch: int, devices: int) -> list[str]:
    """The table of one network, as lines of Markdown.

    Args:
        network: what is counted.
        batch: samples of all devices.
        devices: how many.

    Returns:
        Lines.
    """
    b, found = batch // devices, {}
    for shape in network.shapes:
        found[shape.name] = sent_numbers(shape.extent, shape.kind, "auto", LIMITS, FLOAT) or 0
    default = [numbers for numbers in found.values() if sendable(numbers, LIMITS, FLOAT)]
    sgd = of_sgd(network, b)
    rows = []
    for name, numbers in (("default `gram_memory`", default), ("all layers", list(found.values()))):
        total = sum(numbers)
        products, own = 2 * b * batch * total, FLOAT * b * total
        cells = [
            f"{len(numbers)} of {len(found)}",
            f"{total:,}",
            f"{own / 1e6:,.1f}",
            f"{(devices - 1) * own / 1e6:,.0f}",
            f"{devices * own / 1e6:,.0f}",
            f"{products / 1e9:,.1f}",
            f"{products / sgd:.3f}",
        ]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    room = max(found.values()) * FLOAT * GLOBAL_BATCH
    return [
        f"**{network.name}**, {b} samples on each of {devices} devices:",
        "",
        "| | layers that send | numbers a sample | a device's samples, MB | sent in a ring, MB | held, MB | products, "
        "Gflop | over SGD |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"All layers send from {room / 1e9:.1f} GB of `gram_memory` on. The rows of a device are "
        f"{FLOAT * b * batch / 1e6:.1f} MB and the matrix {FLOAT * batch * batch / 1e6:.1f} MB, once where players "
        f"share a value and once for each of them where they do not. Every device solves for all samples: "
        f"{of_solve(batch) / 1e9:,.1f} Gflop, {of_solve(batch) / sgd:.3f} of its SGD step.",
        "",
    ]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    options = parser.parse_args()
    for network in (resnet(), vit()):
        print("\n".join(report(network, options.batch, options.devices)))


if __name__ == "__main__":
    main()
