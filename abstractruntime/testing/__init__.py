"""For the tests of those who build on the package; nothing of it is imported by `import abstractruntime`."""
