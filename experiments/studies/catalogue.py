"""The studies by name, in the order of the page."""

from experiments.studies import (
    from_scratch,
    large_batch,
    local_swats,
    scale_growth,
    spherical,
)
from experiments.studies.study import Study

STUDIES: dict[str, Study] = {
    module.STUDY.name: module.STUDY
    for module in (spherical, local_swats, scale_growth, large_batch, from_scratch)
}
