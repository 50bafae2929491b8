"""The webhook events of Label Studio, by what they mean to us."""

START_TRAINING = "START_TRAINING"
"""The button, or Label Studio's own count of annotations. Nothing else remembers it."""

TRAINING_EVENTS = frozenset(
    {"ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED", START_TRAINING}
)
"""Events after which there is something to learn; all others are acknowledged."""

OTHER_EVENTS = frozenset(
    {
        "PROJECT_CREATED",
        "PROJECT_UPDATED",
        "PROJECT_DELETED",
        "TASKS_CREATED",
        "TASKS_DELETED",
        "LABEL_LINK_CREATED",
        "LABEL_LINK_UPDATED",
        "LABEL_LINK_DELETED",
    }
)
"""What it sends besides, where a webhook asks for all events."""
