"""Linear probes on the tokens of the frozen encoder, across patients and beside baselines."""
