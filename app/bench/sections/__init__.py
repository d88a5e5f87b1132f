"""The sections of the benchmark: what each measures, and what its rows show."""
