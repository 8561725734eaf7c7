"""Who may call whom, over what: TLS, bearer credentials and roles, for servers and for clients of them.

The modules are imported by name: `credentials` needs the standard library alone, `client_access` grpcio.
"""
