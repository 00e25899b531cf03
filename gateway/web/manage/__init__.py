"""`/v1/manage/…`: the operations of operators on a running gateway."""
