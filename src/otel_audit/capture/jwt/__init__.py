"""Bearer tokens: who sent them, and whether that is proved."""

from otel_audit.capture.jwt.token import TokenError, VerifiedToken
from otel_audit.capture.jwt.verifier import JwtVerifier, TokenReader

__all__ = ["JwtVerifier", "TokenError", "TokenReader", "VerifiedToken"]
