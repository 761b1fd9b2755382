"""Networks: a name, an IPv4 subnet, a ULA /64."""
