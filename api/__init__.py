"""The HTTP room: FastAPI over the store. One package per resource, each with endpoints, schemas and service."""
