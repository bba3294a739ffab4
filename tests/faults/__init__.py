"""The proofs about money and single flight: real processes, real faults, and the upstream's own bill as the judge."""
