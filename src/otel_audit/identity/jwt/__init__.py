"""Bearer tokens: who sent them, and whether that is proved.

Private: ``docs/api.md`` lists the public modules.
"""

from otel_audit.identity.jwt.token import DecodedToken, TokenError
from otel_audit.identity.jwt.verifier import JwtVerifier, TokenReader

__all__ = ["DecodedToken", "JwtVerifier", "TokenError", "TokenReader"]
