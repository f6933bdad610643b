"""What the core logs goes to mmengine's current logger, and so to the log of a run."""

import logging

from mmengine.logging import print_log


class _ToCurrentLogger(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print_log(record.getMessage(), 'current', record.levelno)


def forward_core_log() -> None:
    """Has mmengine's current logger take the records of kat_mm's core. Safe to call again."""
    logger = logging.getLogger('kat_mm')
    if not any(type(handler).__name__ == '_ToCurrentLogger' for handler in logger.handlers):
        logger.addHandler(_ToCurrentLogger())
    logger.setLevel(logging.INFO)
