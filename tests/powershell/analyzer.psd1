# What PSScriptAnalyzer looks for in every script.
@{
    IncludeDefaultRules = $true
    Severity            = @('Error', 'Warning', 'Information')
    ExcludeRules        = @(
        # Nobody calls the scripts' own functions with -WhatIf.
        'PSUseShouldProcessForStateChangingFunctions'
        # The scripts' own short functions are called by position.
        'PSAvoidUsingPositionalParameters'
        # Script blocks that share a signature do not all need every parameter.
        'PSReviewUnusedParameter'
        # Random passwords that the scripts make and show to nobody.
        'PSAvoidUsingConvertToSecureStringWithPlainText'
        # The host's scripts speak to whoever runs them.
        'PSAvoidUsingWriteHost'
        # The tests replace cmdlets of Windows with functions of the same name.
        'PSAvoidOverwritingBuiltInCmdlets'
        # The tests share one global variable with their stand-ins.
        'PSAvoidGlobalVars'
    )
    Rules               = @{
        PSUseCompatibleSyntax      = @{ Enable = $true; TargetVersions = @('5.1', '7.0') }
        PSUseCompatibleCmdlets     = @{ compatibility = @('desktop-5.1.14393.206-windows') }
        PSPlaceOpenBrace           = @{ Enable = $true; OnSameLine = $true; NewLineAfter = $false; IgnoreOneLineBlock = $true }
        PSPlaceCloseBrace          = @{ Enable = $true; NewLineAfter = $false; IgnoreOneLineBlock = $true; NoEmptyLineBefore = $true }
        PSUseConsistentIndentation = @{ Enable = $true; IndentationSize = 4; PipelineIndentation = 'IncreaseIndentationForFirstPipeline'; Kind = 'space' }
        PSUseConsistentWhitespace  = @{ Enable = $true; CheckInnerBrace = $true; CheckOpenBrace = $true; CheckOpenParen = $true; CheckPipe = $true; CheckSeparator = $true; CheckOperator = $false }
        PSUseCorrectCasing         = @{ Enable = $true }
    }
}
