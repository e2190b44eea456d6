"""Runs `tests.campaign.driver` and adds the ids of every training batch to the file IDS_FILE, one JSON row a step."""

import json
import os

from tests.campaign import driver


def record() -> None:
    """Replaces the batches of a training by the same batches, of which each is written down when it is taken."""
    from research.training import loop

    make = loop.train_batches

    def batches(*args, start_step: int, **kwargs):
        for step, batch in enumerate(make(*args, start_step=start_step, **kwargs), start_step):
            ids = [str(name) for name in batch["id"][batch["valid"]]]
            with open(os.environ["IDS_FILE"], "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "ids": ids}) + "\n")
            yield batch

    loop.train_batches = batches


def main() -> int:
    """Records, then runs."""
    record()
    return driver.main()


if __name__ == "__main__":
    driver.leave(main)
