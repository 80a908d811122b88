"""A conftest with which all tests of a rate share one measurement."""

ONCE = """
    import msgspec
    from pytest_gpucap.session.gpucap import GpuCap

    measured, checked = {}, GpuCap._checked

    def once(self, requirement, start=0, heard=None):
        "All tests of a rate share one measurement, which takes most of the time."
        if requirement.qps not in measured:
            measured[requirement.qps] = checked(self, requirement, start)
        verdict, result = measured[requirement.qps]
        return verdict, msgspec.structs.replace(result, test=self._test, name=self._declared.name)

    GpuCap._checked = once
"""
