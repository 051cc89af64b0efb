"""Guards: each knows one way in which a run can look healthy and not be, from what it measures in the run."""
