"""Linear layers that compute what torch's own compute, sooner or in less memory."""
