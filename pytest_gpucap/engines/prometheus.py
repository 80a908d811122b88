"""Parsed Prometheus samples of a server's ``/metrics``."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True, slots=True)
class Metrics:
    """The samples of one reading, in the order the server gave them.

    Attributes:
        samples: each with `name`, `labels` and `value`, as `prometheus_client` has them; units are those that the names
            end with.
    """

    samples: tuple[Sample, ...]

    @classmethod
    def parse(cls, text: str) -> Metrics:
        """Parse the text exposition format.

        Raises:
            ValueError: if the text is not in that format.
        """
        return cls(tuple(sample for family in text_string_to_metric_families(text) for sample in family.samples))

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def find(self, name: str, **labels: str) -> list[Sample]:
        """The samples with that name and at least these labels; empty if there are none."""
        wanted = labels.items()
        return [sample for sample in self.samples if sample.name == name and wanted <= sample.labels.items()]

    def value(self, name: str, **labels: str) -> float:
        """The sum over the samples with that name and at least these labels.

        Raises:
            KeyError: if there is none; the message offers similar names.
        """
        found = self.find(name, **labels)
        if found:
            return float(sum(sample.value for sample in found))
        if same := [sample.labels for sample in self.samples if sample.name == name]:
            raise KeyError(f"{name} has no sample with {labels}; its labels are {same[:5]}")
        names = {sample.name for sample in self.samples}
        near = difflib.get_close_matches(name, names, n=5, cutoff=0.5) or sorted(names)[:5]
        raise KeyError(f"the server has no metric {name}; similar: {', '.join(near) or 'none at all'}")
