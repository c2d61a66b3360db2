@{
    RootModule        = 'Hyper-V.psm1'
    ModuleVersion     = '1.0.0'
    GUID              = '6f0c5a0e-9a3c-4a5e-8f43-6d1c6f2b7a10'
    Description       = 'A simulated Hyper-V host in a folder, for the checks of the pool scripts.'
    FunctionsToExport = '*'
    CmdletsToExport   = @()
    VariablesToExport = @()
    AliasesToExport   = @()
}
