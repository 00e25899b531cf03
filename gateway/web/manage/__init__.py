"""`/v1/manage/…`: what operators ask of a running gateway."""
