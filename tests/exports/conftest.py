from tests.adapters.conftest import kind, make, net, shake

__all__ = ["kind", "make", "net", "shake"]
