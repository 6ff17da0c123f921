"""The verb `bench`: this machine's throughput and latency, beside other engines in the same run."""
