"""Study 1: do optimizers that know of spheres train a normalized network better?"""

from experiments.report.published import judge_claims
from experiments.studies.grids import grid_blocks, run_grid
from experiments.studies.study import Outcome, Place, Study, verdict_of

# As published for ResNet-20 on CIFAR-10, the nearest setting there is.
_OPTIMIZERS = (
    "sgd:momentum=0.9:weight_decay=0.00025",
    "sgdmrt:momentum=0.9:weight_decay=3.125e-05",
    "adam:b2=0.99:weight_decay=0.0005",
    "adamw:b2=0.99:weight_decay=0.01",
    "adamg:b2=0.99:weight_decay=0.0005",
    "adams:b2=0.99:weight_decay=0.0005",
    "adamsrt:b2=0.99:weight_decay=7.8125e-06",
)


def run(place: Place) -> Outcome:
    """Seven optimizers on a batch-normalized ResNet, judged by the paper's claims."""
    dataset = "digits" if place.small else "fashion_mnist"
    column = run_grid(place, dataset, "small_resnet", _OPTIMIZERS, "--epochs=2")
    findings = [f for f in judge_claims(column) if "Roburin" in f.source]
    accuracies = {
        label: [run.accuracy for run in setting.finished]
        for setting, label in zip(column.settings, column.labels, strict=True)
    }
    title = f"small ResNet on {dataset}"
    return Outcome(
        [verdict_of(finding) for finding in findings],
        grid_blocks(column, findings, place, "spherical", title),
        {"test_accuracy": accuracies},
    )


STUDY = Study(
    name="spherical",
    title="Optimizers on spheres",
    question="Does AdamSRT train better than AdamS, and AdamS better than Adam?",
    source="Roburin et al. 2020",
    about=(
        "A small ResNet with batch norm (77,754 weights) on Fashion-MNIST, 2 epochs, a"
        " cosine schedule, batches of 64, three seeds, with the hyperparameters that"
        " were published for ResNet-20 on CIFAR-10. The paper trains for 405 epochs on"
        " larger networks: two epochs show who starts fast, not who ends best."
    ),
    full_scale=(
        "CIFAR=folder:cifar10-jpeg.tar.xz  # CIFAR-10 as JPEG, or cifar10 itself",
        "python -m experiments.reproduce --dataset $CIFAR --model resnet20"
        " --optimizers sgd,sgdmrt,adam,adamw,adamg,adams,adamsrt --seeds 0..4"
        " --epochs 405 --batch-size 128 --schedule step --validation-fraction 0.05",
        "python -m experiments.reproduce --dataset cifar10 --model resnet20"
        " --protocol spherical --optimizers all --seeds 0..4",
        "python -m experiments.reproduce --dataset cifar10 --model resnet18"
        " --protocol spherical --optimizers all --seeds 0..4",
    ),
    seeds=3,
    run=run,
)
