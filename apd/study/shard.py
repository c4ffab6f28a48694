"""One worker's part of a campaign that several workers share."""

from typing import NamedTuple, Self

from apd.config.experiment import Experiment
from apd.training.exit_codes import UsageError


class Shard(NamedTuple):
    """One worker's part of a campaign: number `number`, from 1, of `of`."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """From a text such as "2/8"; an empty one is the whole campaign.

        Raises:
            UsageError: it is none.
        """
        number, slash, of = text.partition("/")
        if not text:
            return cls()
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UsageError(f"shard = {text!r}: expected i/n with 1 <= i <= n, such as 2/8")
        return cls(int(number), int(of))

    def of_list(self, experiments: list[Experiment]) -> list[Experiment]:
        """The experiments that this worker is dealt, whatever has been run.

        They are dealt out like cards, back and forth, so that no worker always gets the same method of a seed.
        """
        round_trip = [*range(1, self.of + 1), *range(self.of, 0, -1)]
        return [e for place, e in enumerate(experiments) if round_trip[place % len(round_trip)] == self.number]


WHOLE = Shard()
