"""The shared adapter core: sites, tensor networks, and the PEFT tuner around them. Knows nothing of proteins."""
