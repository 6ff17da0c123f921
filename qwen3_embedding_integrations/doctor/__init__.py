"""Is a backend right? Golden values, relations between answers, and names for what is wrong."""

from .diagnosis import diagnose
from .faults import Check, Diagnosis, Fault

__all__ = ["Check", "Diagnosis", "Fault", "diagnose"]
