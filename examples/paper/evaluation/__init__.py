"""Measuring AP-MAEs: reconstruction beside baselines, linear probes, correctness."""
