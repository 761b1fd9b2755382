"""The whole product on one machine: real binaries, real TUN devices, real TLS, in network namespaces made for the purpose."""
